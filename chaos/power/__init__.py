"""Power loss: what is left of the store when the machine stops at any moment, and whether that keeps every promise.

A run of the real runtime is recorded: what SQLite wrote, truncated, deleted and synced, in order, and between that what
the outside was told (an ACK, a published output, an answer). From the recording every crash image is rebuilt. What was
synced is there; what was written since is up to the disk:

    prefix        the first k of the writes, in order
    all but one   every write but one
    only          one write alone
    torn          all before it, and of one write the first k sectors of 512 bytes, or the last k

Each image is opened as SQLite opens it after a power loss, and must be whole (G5) and hold what was promised by then:
whatever was ACKed is decided (G1), whatever was published is stored (G3), and its command will not be decided again
(G2).

What is assumed of the disk: a sync of a file that has returned made everything written to it durable; a write changes
no byte beside it (SQLite's POWERSAFE_OVERWRITE); the name of a new or deleted file is durable with the first sync of a
file made since, for which SQLite syncs the directory. A directory made by the runtime is taken to be durable.

    tape        the recording          vfs, witness   what writes it          record      the process it is made in
    images      every crash image      mount          one image, opened       promises    what must be in it
    judge       all of it together     result         what came of it         check       both processes, one result
"""
