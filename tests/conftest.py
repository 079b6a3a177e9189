"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# How busy the machine is never decides a test.
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")
