"""Sources of all planted blocks by name: leaks, sound ones, and texts that are refused unread."""

from __future__ import annotations

from tests.gate import planted_defects, planted_leaks, planted_sound
from tests.gate.planted_text import STATIC

LEAKS = {name: plant.source for name, plant in planted_leaks.LEAKS.items()}
DEFECTS = {name: plant.source for name, plant in planted_defects.DEFECTS.items()}
SOUND = {name: plant.source for name, plant in planted_sound.SOUND.items()}

__all__ = ["DEFECTS", "LEAKS", "SOUND", "STATIC"]
