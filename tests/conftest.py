"""Settings of every test run."""

from hypothesis import settings

# No deadline: a shared machine is slow at random. Derandomised: the same examples in every run.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("repository")
