"""The chaos suite: whole installations whose processes are killed, paused, cut off and starved while people train.

`make chaos` runs it; docs/reliability.md says what it shows. The parts: `programs` (what is trained), `client` (the
process that does it and survives), `schedule` (what happens to whom, and when), `injector` (does it), `stack` (what it
is done to), `verdict` (whether anything was lost, doubled, changed or stuck).
"""
