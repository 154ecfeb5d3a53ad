"""The device's side: run the prefix, ship the cut, take the answer, finish alone when need be."""
