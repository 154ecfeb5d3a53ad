"""What every cut and codec costs, and which one is best now.  numpy only, except :mod:`.measure`."""
