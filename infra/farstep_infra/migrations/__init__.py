"""How the control plane's database came to be what it is: one file a step, never changed once it was released."""
