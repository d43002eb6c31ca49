"""One config -> one run: the only place where the parts meet."""
