"""`python -m mrp`, which `torchrun -m mrp` and `accelerate launch -m mrp` need."""

from mrp.cli import main

main()
