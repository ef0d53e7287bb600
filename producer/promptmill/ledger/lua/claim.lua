-- claim: gone -> skip; queue paused -> paused; same token -> granted again (the reply was lost); all that is open held
-- by others -> leave; else granted: no more prompts than the worker has room for, and what is left is offered again at once.
-- It may be another record's turn than that of the pointer: that one is granted, under a token that names it.

-- After this another worker may begin to wait as well.
local WAITING_MS = 30000

local id, token, room, lease_ms, lane, score, deliveries = unpack(ARGV, 3, 9)
write_even_when_full()
local now = clock()

-- Every claim reports its pointer's score: what is queued below the highest score popped may have lost its pointer. A
-- score from the future was forged, and would cast suspicion on all that is to come.
if lane ~= '' and redis.call('ZCARD', key('lane:' .. lane)) > 0 then
  local highest = tonumber(redis.call('HGET', key('watermarks'), lane) or '0')
  if tonumber(score) > highest and tonumber(score) <= now then redis.call('HSET', key('watermarks'), lane, score) end
end

-- Plain calls, and what is queued again, have no turns: their messages are for nobody else.
local named = id
local granted_before = redis.call('HGET', key('granted'), claim_of(token))
if granted_before then
  id = granted_before
elseif lane ~= '' and not is_again_lane(lane) and redis.call('HEXISTS', key('record:' .. id), 'claim:' .. token) == 0 then
  id = whose_turn(lane, score, now)
  if not id then return {'gone'} end
end
token = id .. '/' .. claim_of(token)
local record = key('record:' .. id)
local from = redis.call('HGET', record, 'lane')

local keep, deadline = unpack(redis.call('HMGET', record, 'keep', 'deadline'))
keep = keep == '1'
-- No record, or one that the next sweep ends.
if not deadline or tonumber(deadline) <= now then return {'gone'} end
if not keep and is_complete(id) then
  drop(id)
  return {'gone'}
end

-- In a queue that is paused nothing begins: the turn is kept, with a new pointer. What this token was granted already
-- stays its, and the answer of a plain call is still handed over.
if redis.call('HEXISTS', key('paused'), model_queue(from)) == 1 and not is_complete(id)
  and redis.call('HEXISTS', record, 'claim:' .. token) == 0 then
  if redis.call('HGET', record, 'open') ~= '' then queue_up(id, from, now) end
  return {'paused'}
end

local answer = keep and redis.call('HGET', key('answers:' .. id), '0') or ''
local positions = split(redis.call('HGET', record, 'claim:' .. token))
local open = split(redis.call('HGET', record, 'open'))
-- A kept record is claimed once more after its answer, by the worker that has to hand it to Celery.
if not keep then positions, open = unanswered(id, positions), unanswered(id, open) end
local losses = losses_of(id, #positions > 0 and positions or open)
if #positions == 0 then
  -- A prompt at its last delivery runs alone in its worker: if that dies, it is known whose doing it was. Its turn
  -- comes when no other prompt of the record is open.
  local usual, last, rest = {}, {}, {}
  for _, position in ipairs(open) do
    local list = (losses[position] or 0) + 1 >= tonumber(deliveries) and answer == '' and last or usual
    if list == usual and #usual >= tonumber(room) then list = rest end
    list[#list + 1] = position
  end
  positions = usual
  if #usual == 0 and #last > 0 then
    -- The worker takes nothing new until it is empty, so only one of a model's workers waits for that. Meanwhile the
    -- record stays where it is: the sweep soon finds that its pointer is gone. It must not get others' turns until then.
    local who_waits = key('waiting:' .. model_queue(from))
    local waiting = redis.call('GET', who_waits)
    if waiting and redis.call('ZSCORE', key('leases'), waiting) then
      redis.call('ZREM', key('turns:' .. from), id)
      return {'leased'}
    end
    redis.call('SET', who_waits, token, 'PX', WAITING_MS)
    positions = {table.remove(last, 1)}
    redis.call('HSET', record, 'alone:' .. token, 'waiting')
  end
  for _, position in ipairs(last) do rest[#rest + 1] = position end
  redis.call('HSET', record, 'open', join(rest))
  -- The rest keeps its lane and its turn, but for what was served: in a lane of high priority it would overtake that one's
  -- own. What is queued again stays there, too: part of it has waited for longer than it should have.
  if #rest == 0 then
    leave_lane(id)
  else
    queue_up(id, from, now)
  end
  if #positions == 0 then return {'leased'} end
  note_served(from, turn_of(id, from, positions[1]), #positions, now)
  if id ~= named then redis.call('HSET', key('granted'), claim_of(token), id) end
end
redis.call('HSET', record, 'claim:' .. token, join(positions))
redis.call('ZADD', key('leases'), text(now + tonumber(lease_ms) * 1000), token)

local version, requests, count, entered = unpack(redis.call('HMGET', record, 'version', 'requests', 'count', 'entered'))
if join(positions) ~= join(all_positions(count)) then
  local lines, taken = {}, {}
  for line in string.gmatch(requests, '[^\n]+') do lines[#lines + 1] = line end
  for _, position in ipairs(positions) do taken[#taken + 1] = lines[position + 1] end
  requests = table.concat(taken, '\n')
end
local attempts = {}
for i, position in ipairs(positions) do attempts[i] = 1 + (losses[position] or 0) end
local _, priority = queue_and_priority(from)
return {'granted', version, requests, join(positions), join(attempts), text(now - entered), text(deadline - now),
  answer, redis.call('HEXISTS', record, 'alone:' .. token), id, priority,
  turn_of(id, from, positions[1])}
