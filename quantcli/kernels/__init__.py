"""Pure numpy kernels: float32 arrays in, new arrays out; arguments change only when named `out`.

Quantization works on *tiles* `x[n, S, R]` (position in sub-block, sub-block in block, block): every
operation runs along the long contiguous axes and every sum goes over axis 0, one block apart from
the next. R is a multiple of 8, so that codes can be handled eight at a time.
"""
