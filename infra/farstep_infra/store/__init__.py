"""Where checkpoints live. The only part of the control plane's package that trainers and samplers use."""
