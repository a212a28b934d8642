"""Every kernel of an encoder: what it is called with, what it moves, what it takes, how long it lasts."""
