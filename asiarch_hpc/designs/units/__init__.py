"""The unit library. Units are read by `designs.library` as text and reach a design through `designs.compose`.

Units keep the documents of a row apart where `documents` are in Z: what a token gets is what it would get if its
document were alone. Three cannot, and let what they remember go on from one document to the next: `LongConvolution`,
`Hyena` (their filters are as long as the row, and one Fourier transform computes all of it) and `TTTLinear` (its
mini-batches begin at fixed places of the row).
"""
