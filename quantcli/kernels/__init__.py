"""Pure numpy kernels: float32 arrays in, new arrays out; arguments change only when named `out`.

Quantization works on tiles of R blocks, in two layouts (quantcli.kernels.tiles converts):

- *units* x[U, 4 R]: weight 4 u + lane of block r is x[u, 4 r + lane]. Codes are rounded, packed
  and decoded in it: bytes move between it and the stored blocks four at a time.
- *planes* x[n, S, R]: position in sub-block, sub-block, block. Scales are searched in it: every
  operation runs along long contiguous axes and every sum goes over axis 0.

R is an odd multiple of 8: codes can be handled eight at a time, and the rows of a tile do not fall
into the same few cache sets, as they do at powers of two (which makes transposing 5 times slower).
"""
