"""What every test may ask for: a NATS."""

from support.nats import nats_server, pytest_report_header, start_nats

__all__ = ["nats_server", "pytest_report_header", "start_nats"]
