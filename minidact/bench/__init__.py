"""What times: minidact against its peers and against the limits of the machine."""
