/* Two tasks agree by two flags who may go in. LATE: each looks at the other's flag before it raises its own. */
bool flag[2];
byte inside = 0, most = 0, entered = 0, ended = 0;

proctype task(byte me) {
    bool free;
#ifdef LATE
    free = !flag[1 - me];
    flag[me] = true;
#else
    flag[me] = true;
    free = !flag[1 - me];
#endif
    if
    :: free ->
        d_step { inside++; entered++; if :: inside > most -> most = inside :: else fi };
        inside--
    :: else
    fi;
    flag[me] = false;
    ended++
}

init {
    atomic { run task(0); run task(1) };
    ended == 2;
    c_code { printf("OUT %d %d %d\n", now.most > 1, now.most, now.entered); }
}
