"""Bytes to messages and back, with every limit checked before anything is allocated."""
