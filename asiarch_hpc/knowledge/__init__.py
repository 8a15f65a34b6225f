"""What the literature knows: entries that an agent can be reminded of, and how they are found."""
