"""The command line: one file a verb, and the only room that knows all the others."""
