"""Stand-ins for the daemon's neighbours: real sockets, scripted to the byte."""
