/* A walker with interrupts off reads an entry and then the table that it names; another CPU takes the table away.
 *
 * IPI: the table goes when the walker's CPU has taken an interrupt; RCU: when the readers of before have left;
 * neither: at once. */
bool off = false, entry = true, live = true, readers = false;
bool saw = false, bad = false;
byte ended = 0;

proctype walker() {
    off = true;
    saw = entry;
    if
    :: saw -> bad = !live
    :: else
    fi;
    off = false;
    ended++
}

proctype unmapper() {
    entry = false;
#ifdef IPI
    !off;
    live = false;
#else
#ifdef RCU
    readers = off;
    atomic { (!readers || !off) -> live = false };
#else
    live = false;
#endif
#endif
    ended++
}

init {
    atomic { run walker(); run unmapper() };
    ended == 2;
    c_code { printf("OUT %d %d\n", now.bad, now.saw); }
}
