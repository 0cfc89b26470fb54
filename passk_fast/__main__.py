"""`python -m passk_fast` is `passk-fast`."""

from passk_fast.cli import main

main()
