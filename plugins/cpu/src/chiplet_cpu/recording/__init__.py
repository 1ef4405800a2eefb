"""Steps written down once and repeated: kernels on a tape, torch's operations between them."""
