/* One CPU uses a page twice, through its TLB or else its pte; another unmaps the page, asks for a flush, frees it.
 *
 * EARLY: the page is freed before the flush. */
bool pte = true, tlb = false, freed = false, bad = false;
byte uses = 0, ended = 0;

inline use() {
    d_step {
        if
        :: tlb || pte -> tlb = true; uses++; bad = bad || freed
        :: else
        fi
    }
}

proctype user() {
    use();
    use();
    ended++
}

proctype unmapper() {
    pte = false;
#ifdef EARLY
    freed = true;
    tlb = false;
#else
    tlb = false;
    freed = true;
#endif
    ended++
}

init {
    atomic { run user(); run unmapper() };
    ended == 2;
    c_code { printf("OUT %d %d %d\n", now.bad, now.uses, now.tlb); }
}
