"""Latency: profiles, devices, link and how the parts compose."""
