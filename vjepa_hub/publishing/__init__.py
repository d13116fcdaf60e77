"""Facts of a run to a card, and to a repository on the Hub; verification of what is there."""
