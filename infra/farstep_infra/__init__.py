"""What starts and finds everything else: control plane, launchers, and the checkpoint store.

It starts trainers and samplers as processes and never imports them; trainers and samplers use its `store`.
"""
