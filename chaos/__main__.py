"""`python -m chaos` is `meshforge-chaos`."""

from chaos.cli import main

main()
