-- sweep: one sweeper at a time queues again what lost its lease or its pointer, and ends what is past its deadline.

-- A lane that waits for so long while others of its model are served gets a turn all the same, and then again so often.
local STARVED_US = 30 * 1000000

write_even_when_full()
local sweeper, interval_ms, grace_ms, limit, expired_json = unpack(ARGV, 3, 7)
if not redis.call('SET', key('sweeper'), sweeper, 'NX', 'PX', interval_ms) then return {} end
local now = clock()
local report = {}

-- 1. Deadlines. What a worker holds is left to it: it knows how far the text has come. What is complete and held by
-- nobody is a plain call whose answer no worker came to fetch.
local ended = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('deadlines'), '-inf', text(now), 'LIMIT', 0, limit)) do
  local open = redis.call('HGET', key('record:' .. id), 'open')
  if ended > tonumber(limit) then break end
  if not open then
    redis.call('ZREM', key('deadlines'), id)
  elseif open ~= '' and is_complete(id) then
    drop(id)
  elseif open ~= '' then
    end_open(id, expired_json, now)
    ended = ended + #split(open)
    report[#report + 1] = 'deadline ' .. id
  end
end

-- 2. Expired leases: their worker is dead, hung or cut off. Its prompts were in an engine, so an attempt is counted.
local function expired_leases()
  return redis.call('ZRANGEBYSCORE', key('leases'), '-inf', text(now), 'LIMIT', 0, limit)
end
local swept = tonumber(redis.call('GET', key('swept')) or text(now))
redis.call('SET', key('swept'), text(now))
if now - swept > (grace_ms + interval_ms) * 1000 then
  -- Nobody has swept for a while, perhaps as the broker was away: living workers could not renew either, and may now.
  -- Once: where nobody sweeps often, a lease that still ends where the last sweep put its end is a dead worker's.
  for _, token in ipairs(expired_leases()) do
    if tonumber(redis.call('ZSCORE', key('leases'), token)) ~= swept + grace_ms * 1000 then
      redis.call('ZADD', key('leases'), text(now + grace_ms * 1000), token)
    end
  end
end
local reopens_of, expired = {}, expired_leases()
-- All deaths first: whether a prompt is to blame depends on who else died.
for _, token in ipairs(expired) do note_death(token, now) end
for _, token in ipairs(expired) do
  local id = record_of(token)
  local reopens = lose(id, token, EXPIRED, now)
  if reopens ~= nil and reopens_of[id] == nil then report[#report + 1] = 'lease ' .. id end
  reopens_of[id] = reopens_of[id] or reopens
end
-- A record may have lost several claims: it is queued once, with all of them.
for id, reopens in pairs(reopens_of) do
  if reopens then queue_up(id, again_lane(redis.call('HGET', key('record:' .. id), 'lane')), now) end
end

-- Counted once more from nothing, should it ever have gone wrong.
if redis.call('ZCARD', key('deadlines')) == 0 then redis.call('DEL', key('prompts')) end
-- Whoever watches takes a count that begins anew for what it is.
if redis.call('HLEN', key('totals')) > 1000 then redis.call('DEL', key('totals')) end

-- 3. Lost pointers, by a watermark in two steps. At a time T a mark is kept for each lane: now if the lane's list is
-- empty, else the highest score popped so far. A grace after T, whatever is still queued below the mark has no pointer
-- left: it had left the list, or never was in it, at T, and nobody claimed it since.
for _, lane in ipairs(redis.call('SMEMBERS', key('lanes'))) do
  local queued = key('lane:' .. lane)
  local mark, since = string.match(redis.call('HGET', key('marks'), lane) or '', '^(%d+) (%d+)$')
  if since and now - since >= grace_ms * 1000 then
    local lost = redis.call('ZRANGEBYSCORE', queued, '-inf', '(' .. mark, 'LIMIT', 0, limit)
    for _, id in ipairs(lost) do
      if redis.call('EXISTS', key('record:' .. id)) == 1 then
        queue_up(id, again_lane(lane), now)
        report[#report + 1] = 'pointer ' .. id
      else
        redis.call('ZREM', queued, id)
      end
    end
    if #lost < tonumber(limit) then since = nil end
  end
  if not since then
    if redis.call('ZCARD', queued) == 0 then
      prune_lane(lane)
    else
      local popped = redis.call('HGET', key('watermarks'), lane) or '0'
      local below = redis.call('LLEN', list_of(lane)) == 0 and text(now) or popped
      redis.call('HSET', key('marks'), lane, below .. ' ' .. text(now))
    end
  end
end

-- 4. Priorities are strict, and the lowest is not to starve: its first record goes to what is queued again.
local served, served_last = {}, {}
local flat = redis.call('HGETALL', key('served'))
for i = 1, #flat, 2 do
  local lane, at = flat[i], tonumber(flat[i + 1])
  served[lane] = at
  served_last[model_queue(lane)] = math.max(served_last[model_queue(lane)] or 0, at)
end
for _, lane in ipairs(redis.call('SMEMBERS', key('lanes'))) do
  local first = now - (served_last[model_queue(lane)] or 0) < STARVED_US and next_in(lane, now)
  if first then
    local oldest = redis.call('ZRANGE', key('lane:' .. lane), 0, 0, 'WITHSCORES')[2]
    local lifted = redis.call('HGET', key('lifted'), lane) or '0'
    if now - math.max(served[lane] or 0, tonumber(oldest), tonumber(lifted)) >= STARVED_US then
      queue_up(first, again_lane(lane), now)
      redis.call('HSET', key('lifted'), lane, text(now))
    end
  end
end
return report
