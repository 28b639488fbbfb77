"""Freshness per call: lives of cars replayed in virtual time against a polling policy.

A policy sees what a rate-limited, slow, stale cloud tells (:mod:`.upstream`), never the truth
(:mod:`.traces`, :mod:`.lives`). :mod:`.replay` runs it, :mod:`.metrics` measures how far the published state
of charge was from the true one, :mod:`.baselines` and :mod:`.oracle` are what it is measured by. Plain Python
and numpy; nothing of the daemon; same seed, same figures.

Times are seconds; 0 is a Monday 00:00 local time. A state of charge is a fraction of the usable battery.
"""
