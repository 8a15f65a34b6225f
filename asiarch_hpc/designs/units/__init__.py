"""The unit library. Units are read by `designs.library` as text and reach a design through `designs.compose`."""
