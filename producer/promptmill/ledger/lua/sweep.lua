-- sweep: one sweeper at a time queues again what lost its lease or its pointer, and ends what is past its deadline.
local sweeper, interval_ms, grace_ms, limit, expired_json = unpack(ARGV, 3, 7)
if not redis.call('SET', key('sweeper'), sweeper, 'NX', 'PX', interval_ms) then return {} end
local now = clock()
local report = {}

-- 1. Deadlines. What is complete here is a plain call whose answer no worker came to fetch.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('deadlines'), '-inf', text(now), 'LIMIT', 0, limit)) do
  local count = redis.call('HGET', key('record:' .. id), 'count')
  if not count then
    redis.call('ZREM', key('deadlines'), id)
  elseif is_complete(id) then
    drop(id)
  else
    answer_all(id, all_positions(count), expired_json)
    conclude(id, now)
    report[#report + 1] = 'deadline ' .. id
  end
end

-- 2. Expired leases: their worker is dead, hung or cut off. Its prompts were in an engine, so an attempt is counted.
local function expired_leases()
  return redis.call('ZRANGEBYSCORE', key('leases'), '-inf', text(now), 'LIMIT', 0, limit)
end
local swept = tonumber(redis.call('GET', key('swept')) or text(now))
redis.call('SET', key('swept'), text(now))
if now - swept > grace_ms * 1000 then
  -- Nobody has swept for a while, perhaps as the broker was away: living workers could not renew either, and may now.
  for _, token in ipairs(expired_leases()) do redis.call('ZADD', key('leases'), text(now + grace_ms * 1000), token) end
end
local reopened = {}
for _, token in ipairs(expired_leases()) do
  local id = string.match(token, '^(.*)/[^/]*$')
  local record = key('record:' .. id)
  local held = redis.call('HGET', record, 'claim:' .. token)
  redis.call('ZREM', key('leases'), token)
  if held then
    redis.call('HDEL', record, 'claim:' .. token)
    local lost = unanswered(id, split(held))
    if #lost > 0 then redis.call('HINCRBY', record, 'lost', 1) end
    for _, position in ipairs(lost) do redis.call('HINCRBY', record, 'lost:' .. position, 1) end
    if redis.call('HGET', record, 'keep') == '1' then lost = split(held) end
    if #lost > 0 then
      redis.call('HSET', record, 'open', redis.call('HGET', record, 'open') .. ' ' .. join(lost))
      -- A record may have lost several claims: it is queued once, with all of them.
      if not reopened[id] then reopened[#reopened + 1] = id end
      reopened[id] = true
    end
  end
end
for _, id in ipairs(reopened) do
  queue_up(id, again_lane(redis.call('HGET', key('record:' .. id), 'lane')), now)
  report[#report + 1] = 'lease ' .. id
end

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
      redis.call('HDEL', key('marks'), lane)
    else
      local popped = redis.call('HGET', key('watermarks'), lane) or '0'
      local below = redis.call('LLEN', list_of(lane)) == 0 and text(now) or popped
      redis.call('HSET', key('marks'), lane, below .. ' ' .. text(now))
    end
  end
end
return report
