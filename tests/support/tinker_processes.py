"""How a process may end that used the `tinker` SDK."""

import signal

# After all is done, one in some forty is aborted: a thread of the SDK's is in a library while Python shuts down.
# Whoever allows this also looks at what the process has done.
ENDS = (0, -signal.SIGABRT)
