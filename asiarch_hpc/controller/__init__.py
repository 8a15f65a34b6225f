"""The controller: one cheap process that never imports torch."""
