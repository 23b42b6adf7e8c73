"""aiocoap against the server: one check per run.

usage: coap_checks.py PORT CHECK
Prints what it saw; exits 0 when the check held, 1 with the reason when it did not.
"""
import asyncio
import json
import sys

import aiocoap
import cbor2
from aiocoap.numbers.codes import GET, POST, PUT, DELETE
from aiocoap.numbers.contentformat import ContentFormat

port, check = int(sys.argv[1]), sys.argv[2]
BASE = f"coap://127.0.0.1:{port}"
LIMIT = 10


def expect(truth, words):
    if not truth:
        raise AssertionError(words)


async def ask(client, path, code=GET, accept=None, payload=b"", content=None, **options):
    message = aiocoap.Message(code=code, uri=BASE + path, payload=payload, **options)
    if accept is not None:
        message.opt.accept = accept
    if content is not None:
        message.opt.content_format = content
    return await asyncio.wait_for(client.request(message).response, LIMIT)


async def lists(client):
    answer = await ask(client, "/.well-known/core")
    text = answer.payload.decode()
    print(text)
    expect(answer.opt.content_format == 40, f"{answer.opt.content_format}")
    for part in ("</cellar/temperature>", "rt=", "if=", "ct=", "obs", "title="):
        expect(part in text, f"no {part}")
    narrow = (await ask(client, "/.well-known/core?href=/cellar/hum*")).payload.decode()
    expect("</cellar/humidity>" in narrow and "temperature" not in narrow, narrow)
    none = await ask(client, "/.well-known/core?rt=nothing-like-this")
    expect(none.payload == b"", f"{none.payload}")


async def formats(client):
    text = await ask(client, "/cellar/temperature", accept=0)
    value = float(text.payload)
    pack = json.loads((await ask(client, "/cellar/temperature", accept=110)).payload)
    expect(pack[0]["u"] == "Cel" and abs(pack[0]["v"] - value) < 5, f"{pack}")
    packed = cbor2.loads((await ask(client, "/cellar/temperature", accept=112)).payload)
    expect(packed[0][1] == "Cel" and abs(packed[0][2] - value) < 5, f"{packed}")
    device = json.loads((await ask(client, "/cellar", accept=110)).payload)
    names = {record.get("n") for record in device}
    expect({name.split("/")[-1] for name in names if name} >= {"temperature", "humidity", "pressure"}, f"{names}")
    wrong = await ask(client, "/cellar/temperature", accept=41)
    expect(wrong.code == aiocoap.NOT_ACCEPTABLE, f"{wrong.code}")


async def observes(client):
    request = client.request(aiocoap.Message(code=GET, uri=BASE + "/cellar/temperature", observe=0))
    first = await asyncio.wait_for(request.response, LIMIT)
    expect(first.opt.observe is not None, "no Observe option")
    numbers = []
    async for notification in request.observation:
        numbers.append(notification.opt.observe)
        if len(numbers) == 4:
            break
    expect(numbers == sorted(numbers) and len(set(numbers)) == 4, f"{numbers}")
    request.observation.cancel()


async def blocks(client):
    """A representation larger than a block comes whole by Block2, also in blocks of 64 bytes."""
    whole = await ask(client, "/.well-known/core")
    small = aiocoap.Message(code=GET, uri=BASE + "/.well-known/core", block2=aiocoap.optiontypes.BlockOption.BlockwiseTuple(0, False, 2))
    answer = await asyncio.wait_for(client.request(small).response, LIMIT)
    expect(answer.payload == whole.payload and len(whole.payload) > 64, f"{len(answer.payload)} of {len(whole.payload)}")


async def commands(client):
    done = await ask(client, "/pump/state", PUT, payload=b"1", content=0)
    expect(done.code == aiocoap.CHANGED, f"{done.code}")
    expect((await ask(client, "/pump/state", accept=0)).payload in (b"1", b"true", b"on"), "it is on")
    done = await ask(client, "/pump/state", PUT, payload=b'[{"n":"state","vb":false}]', content=110)
    expect(done.code == aiocoap.CHANGED, f"{done.code} {done.payload}")
    bad = await ask(client, "/pump/state", PUT, payload=b"perhaps", content=0)
    expect(bad.code == aiocoap.BAD_REQUEST, f"{bad.code}")
    fixed = await ask(client, "/cellar/temperature", PUT, payload=b"1", content=0)
    expect(fixed.code == aiocoap.METHOD_NOT_ALLOWED, f"{fixed.code}")


async def refuses(client):
    expect((await ask(client, "/no/such")).code == aiocoap.NOT_FOUND, "4.04")
    expect((await ask(client, "/cellar/temperature", DELETE)).code == aiocoap.METHOD_NOT_ALLOWED, "4.05")
    expect((await ask(client, "/cellar/temperature", POST, payload=b"x")).code == aiocoap.METHOD_NOT_ALLOWED, "4.05")
    odd = aiocoap.Message(code=GET, uri=BASE + "/cellar/temperature")
    odd.opt.add_option(aiocoap.optiontypes.OpaqueOption(aiocoap.OptionNumber(2049), b"critical"))
    answer = await asyncio.wait_for(client.request(odd).response, LIMIT)
    expect(answer.code == aiocoap.BAD_OPTION, f"{answer.code}")


async def main():
    client = await aiocoap.Context.create_client_context()
    try:
        await globals()[check](client)
    except (AssertionError, asyncio.TimeoutError, aiocoap.error.Error) as error:
        print(f"{check}: {error!r}", file=sys.stderr)
        sys.exit(1)
    print("held")
    await client.shutdown()


asyncio.run(main())
