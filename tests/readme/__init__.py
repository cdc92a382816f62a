"""README.md held to its word: every block of it is run, every table compared with the program."""
