"""`python -m farstep_demo`, which is what `farstep demo` runs."""

from farstep_demo.main import main

raise SystemExit(main())
