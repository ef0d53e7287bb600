"""What the broker's access rules have to allow a client and a worker; ``docs/security.md`` has the rules."""

from __future__ import annotations

from typing import Any

import redis

from promptmill.names import again_queue_name, queue_name

__all__ = ["CLIENT_COMMANDS", "WORKER_COMMANDS", "denied_commands"]

#: What a client runs, itself and through the ledger's scripts, of which it may have to run all: where no worker lives,
#: a client sweeps. P: stands for the prefix of our keys.
CLIENT_COMMANDS = """
ping
time
script load -
get P:clock
set P:clock 1
decrby P:memory 1
mget P:worker:a
exists P:record:a
del P:record:a
unlink P:answers:a
expire P:answers:a 1
hset P:record:a b 1
hget P:record:a b
hmget P:record:a b
hgetall P:answers:a
hkeys P:record:a
hdel P:record:a b
hexists P:record:a b
hincrby P:prompts a 1
hget P:rates a
hlen P:answers:a
zadd P:leases 1 a
zrem P:leases a
zrange P:workers 0 0
zcard P:leases
zscore P:leases a
zrangebyscore P:leases 0 1
zremrangebyscore P:deaths 0 1
sadd P:lanes a
srem P:lanes a
smembers P:lanes
xadd P:replies:a * b c
xread streams P:replies:a 0
xtrim P:replies:a maxlen 1
lpush QUEUE a
llen QUEUE
info memory
publish P:settled a
"""

#: What a worker runs besides: news of what is cancelled, Celery's queue, results, events and remote control.
WORKER_COMMANDS = f"""{CLIENT_COMMANDS}
subscribe P:settled
script exists -
xrevrange P:history + - count 1
brpop QUEUE AGAIN 1
rpush QUEUE a
zadd unacked_index 1 a
hset unacked a b
set unacked_mutex a
watch unacked
unwatch
multi
exec
discard
sadd _kombu.binding.QUEUE a
srem _kombu.binding.QUEUE a
psubscribe /0.celery.pidbox
unsubscribe
punsubscribe
publish /0.celeryev/worker.heartbeat a
llen a@host.celery.pidbox\x06\x163
lpush a.reply.celery.pidbox b
get celery-task-meta-a
setex celery-task-meta-a 1 b
publish celery-task-meta-a b
"""

# Since Redis 7.0; where it can't be asked we find out on the way.
_SCRIPT = """
local denied = {}
if redis.acl_check_cmd then
  for _, line in ipairs(ARGV) do
    local words = {}
    for word in string.gmatch(line, '%S+') do words[#words + 1] = word end
    if not redis.acl_check_cmd(unpack(words)) then denied[#denied + 1] = line end
  end
end
return denied
"""


def denied_commands(client: redis.Redis, commands: str, prefix: str, model: str) -> list[str]:
    """Those of ``commands`` that the broker would deny us; it runs none of them.

    Args:
        client: Of the broker, by the user in question.
        commands: ``CLIENT_COMMANDS`` or ``WORKER_COMMANDS``.
        prefix: Of our keys, with its colon.
        model: Served name, for the names of the queues.

    Raises:
        redis.exceptions.RedisError: it can't be asked.
    """
    database = client.connection_pool.connection_kwargs.get("db") or 0
    named = (
        commands.replace("P:", prefix)
        .replace("QUEUE", queue_name(model))
        .replace("AGAIN", again_queue_name(model))
        .replace("/0.", f"/{database}.")
    )
    # EVALSHA, as the ledger does it: EVAL need not be allowed.
    sha = client.script_load(_SCRIPT)
    denied: Any = client.evalsha(sha, 0, *filter(None, named.splitlines()))
    return [line.decode() for line in denied]
