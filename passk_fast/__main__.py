"""`python -m passk_fast` is `passk-fast`."""

from passk_fast.commands.main import main

main()
