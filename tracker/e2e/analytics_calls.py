"""Calls of umami-analytics: sends each kind of event to the collector argv[1] for the website argv[2].

Prints the answers as a JSON list, in the order of the calls.
"""

import asyncio
import json
import sys

import umami

base, website = sys.argv[1:]
umami.set_url_base(base)
umami.set_website_id(website)
umami.set_hostname("py.example")

answers = [
    umami.new_page_view("Docs", "/docs?utm_source=mail", referrer="https://www.search.example/find?q=x"),
    umami.new_event("signup", url="/join", title="Join", custom_data={"plan": "pro", "seats": 3}),
    umami.new_event("no data"),
    umami.new_revenue_event(19.99, currency="EUR", event_name="checkout", url="/checkout"),
    asyncio.run(umami.new_event_async("later", url="/later", custom_data={"tags": ["a", "b"]})),
    umami.new_page_view("Theirs", "/theirs", distinct_id=42, ip_address="203.0.113.7", language="de-DE", screen="390x844"),
]
umami.disable()
answers.append(umami.new_event("not sent"))
umami.enable()
umami.heartbeat()
print(json.dumps(answers))
