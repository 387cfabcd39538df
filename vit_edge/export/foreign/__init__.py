"""Graphs of other exporters: understood, brought into our form, or refused."""
