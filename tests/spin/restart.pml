/* Truncation gives its lock away half way, and finds another mapping in the struct that it noted.
 *
 * a and b: ptes of two mappings of one file of three pages, a bit each. slot: which mapping the struct holds;
 * mark: the number of the truncation that is done with it. FIXED: the mark decides, and not the struct. */
byte a = 7, b = 7, slot = 0, mark = 0, ended = 0;
bool held = false, mapped = false;
bool bad = false;

#define LOCK   atomic { !held -> held = true }
#define UNLOCK held = false

proctype truncate() {
    LOCK;
    d_step {                                      /* pages 0 and 1 are out, then a break */
        if :: slot == 0 -> a = a & 4 :: else -> b = b & 4 fi;
        mark = 5
    }
    UNLOCK;
    LOCK;
    d_step {
        if
#ifdef FIXED
        :: mark == 5 ->
#else
        :: true ->
#endif
            if :: slot == 0 -> a = a & 3 :: else -> b = b & 3 fi      /* goes on at page 2 */
#ifdef FIXED
        :: else ->
            if :: slot == 0 -> a = 0 :: else -> b = 0 fi
#endif
        fi;
        bad = (slot == 0 && a) || (slot == 1 && b)
    }
    UNLOCK;
    ended++
}

proctype unmap() {
    LOCK;
    d_step { a = 0; slot = 1; mark = 0 }          /* the struct is freed, and holds the other mapping now */
    UNLOCK;
    ended++
}

proctype look() {                                 /* takes the lock, and changes nothing */
    LOCK;
    mapped = (slot == 0);
    UNLOCK;
    ended++
}

init {
    atomic { run truncate(); run unmap(); run look() };
    ended == 3;
    c_code { printf("OUT %d %d %d %d %d\n", now.bad, now.a, now.b, now.slot, now.mapped); }
}
