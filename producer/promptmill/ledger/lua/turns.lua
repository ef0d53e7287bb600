-- Whose turn it is: fair queuing between submitters. Put in front of each script, after the prelude.
--
-- A pointer in a lane's list is a turn of that lane; which record gets the turn is found out when it is claimed. Each
-- record has a *turn*, a place on a scale of prompts: behind the submitter's record before it, by as many prompts as
-- that one has, and never before the turn that was served last. The record with the least turn goes next. So whoever
-- comes with ten prompts beside a million of somebody else's is served with the next turns, and two with a million each
-- share. (Start-time fair queuing: Goyal, Vin, Cheng, 1996.)
--
--   turns:<lane>     sorted set: queued records by turn
--   ends:<lane>      sorted set: submitters by the end of their newest record's turn
--   served_turn      hash: lane -> the highest turn that was served
--   served           hash: lane -> when it was served last

local function served_turn(lane) return tonumber(redis.call('HGET', key('served_turn'), lane) or '0') end

-- The turn of a new record.
local function next_turn(lane, submitter, count)
  local ends, least = key('ends:' .. lane), served_turn(lane)
  redis.call('ZREMRANGEBYSCORE', ends, '-inf', least)
  local turn = tonumber(redis.call('ZSCORE', ends, submitter) or least)
  redis.call('ZADD', ends, text(turn + count), submitter)
  return turn
end

-- The record that a pointer with this score gives its turn to; nil if it is its own. Every queued record of a lane has
-- one pointer in its list, with the same score; where the turn goes to another, these two change places.
local function whose_turn(lane, score)
  if is_again_lane(lane) then return nil end
  local queued = key('lane:' .. lane)
  local own = redis.call('ZRANGEBYSCORE', queued, score, score, 'LIMIT', 0, 1)[1]
  local first = redis.call('ZRANGE', key('turns:' .. lane), 0, 0)[1]
  local place = own and first and redis.call('ZSCORE', queued, first)
  if not place or first == own then return own end
  redis.call('ZADD', queued, place, own)
  redis.call('ZADD', queued, score, first)
  return first
end

-- A record of this lane got its turn, for so many prompts. (The lane may be gone: a pointer of long ago turned up.)
local function note_served(id, lane, count, now)
  local lasts = redis.call('HEXISTS', key('served'), lane) == 1
  if lasts then redis.call('HSET', key('served'), lane, text(now)) end
  local turn = redis.call('HGET', key('record:' .. id), 'turn')
  if not turn or is_again_lane(lane) then return 0 end
  if lasts and tonumber(turn) > served_turn(lane) then redis.call('HSET', key('served_turn'), lane, turn) end
  redis.call('HINCRBY', key('record:' .. id), 'turn', count)
  return turn
end

-- Nothing is queued in the lane any more.
local function forget_turns(lane)
  redis.call('DEL', key('turns:' .. lane), key('ends:' .. lane))
  redis.call('HDEL', key('served'), lane)
  redis.call('HDEL', key('served_turn'), lane)
end
