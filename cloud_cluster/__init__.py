"""The cloud's side: a gateway for devices and replicas of the networks' tails, under Ray Serve."""
