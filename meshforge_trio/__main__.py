"""`python -m meshforge_trio` is `meshforge`."""

from meshforge_trio.cli import main

main()
