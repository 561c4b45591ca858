"""The stand-in server and the graphs on both of its sides, for the cases beside this file."""

from kit.remote_server import beside, client, deep, here, server, there  # noqa: F401
