"""One scrape: route, deadline, headers, relay, verification."""
