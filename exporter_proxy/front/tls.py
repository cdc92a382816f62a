"""TLS with scrapers: from what the configuration says to a context that handshakes use."""

from __future__ import annotations

import ssl

from exporter_proxy.config.schema import ServerTls


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """A new context; a live one is never changed, a mismatched pair would break every later handshake.

    Raises OSError, ssl.SSLError among them, where files and settings do not go together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert.file or "", tls.key.file)
    return context
