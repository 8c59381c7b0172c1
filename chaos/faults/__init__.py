"""Faults that befall more than one process: the network between them and the disk under them."""
