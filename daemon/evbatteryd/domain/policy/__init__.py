"""When a call is worth its price: the polling policy, explained in ``docs/polling.md``.

``polling`` is the door: facts and ``now`` in, a decision out. Behind it, in the order of a decision:
``learning`` turns what a look showed into ``habits`` (of one car) and ``lore`` (of an application's cars),
``pacing`` says what a call costs now, ``looking`` finds the moment at which a look is worth that, and
``estimating`` what is known meanwhile. Instants are seconds since 1970, states of charge percent, hazards
events per second, prices and gains percentage points of error times seconds (pp*s).

Pure: no clock, no I/O. The only things that change are the habits and the lore that are handed in.
"""
