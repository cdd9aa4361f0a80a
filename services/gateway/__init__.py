"""The HTTP interface: takes recordings in, tells how far they are, hands results out."""
