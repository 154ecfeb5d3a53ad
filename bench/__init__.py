"""The measurements, their baselines, and the demo.  How and why: ``bench/METHODOLOGY.md``."""
